"""
Streaming
=========
Text.
"""
print(1)
