"""Printify."""
