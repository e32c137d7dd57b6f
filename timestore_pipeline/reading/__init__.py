"""Reading: published ∪ staged rows as one relation, at one consistent moment (invariant 2)."""
