"""Pictures made from pictures: each technique a few lines over `trajectory` and the guidances."""
