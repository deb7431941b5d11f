"""unmask: pre-train image encoders by masked image modelling. Importing it, or asking for help, imports no torch."""

__version__ = "0.1.0"
