"""Attention as layers."""
