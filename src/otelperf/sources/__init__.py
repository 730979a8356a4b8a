"""Where readings come from: one file per subject.

Importing this imports none of them: a program that only counts its workers reads no disk.
"""
