"""What users write: rules, their units and grammar, and which of several holds. Pure."""
