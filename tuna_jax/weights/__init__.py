"""The weight bridge: public parts and official checkpoints in and out, one two-way table of names a
source.
"""
