"""Adapters over timm's trunks: embed, hide, compute."""
