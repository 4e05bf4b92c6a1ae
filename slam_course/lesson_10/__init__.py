"""Figures, explorer and checks of lesson 10."""
