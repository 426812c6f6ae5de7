"""Tables: statistics over the rows of finished runs, and how numbers are written. Runs are read by ``records``."""
