"""Jobs: prune, place LoRA, train, merge, evaluate, report; stage by stage, from a recipe, and on after a kill."""
