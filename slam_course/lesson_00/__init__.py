"""Figures, explorer and checks of lesson 00."""
