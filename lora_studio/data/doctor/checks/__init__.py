"""What is looked for: each check is a function from a case to findings, with a line in CHECKS."""
