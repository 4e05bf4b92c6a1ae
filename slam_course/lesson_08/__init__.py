"""Figures, explorer and checks of lesson 08."""
