"""Reports of finished runs: tables with paired statistics, plots, and one page that holds all of it."""
