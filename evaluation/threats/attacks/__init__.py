"""Attacks as functions of what an adversary holds. The rows call them; torch is loaded by those that need it."""
