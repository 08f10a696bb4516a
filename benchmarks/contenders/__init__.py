"""The ways to keep a replay buffer that are compared, behind one small contract."""
