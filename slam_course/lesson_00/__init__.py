"""Explorers and checks of lesson 00."""
