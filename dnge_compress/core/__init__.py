"""The ground floor: errors, files, plug-ins, precision, progress."""
