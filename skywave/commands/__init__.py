"""What people type. Heavy modules are imported by the command that needs them."""
