"""Adding up the updates of U. Engines differ in where they run, never in the bytes of the sum."""
