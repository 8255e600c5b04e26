"""How the demo is shown: a live view on a terminal, or plain lines. All but `screen` are pure functions of a state."""
