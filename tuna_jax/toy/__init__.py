"""The rendered world and its tiny sizes: data, judge and components of a Tuna that trains on two
CPU cores.
"""
