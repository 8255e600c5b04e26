"""Serving and measuring on real SGLang."""
