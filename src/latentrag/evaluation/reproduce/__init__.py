"""Every table and figure of the paper as commands: one file of rows, what they ran to, and whether that is as said."""
