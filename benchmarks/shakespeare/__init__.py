"""The records of Tiny Shakespeare and the levers behind them. `../LEADERBOARD.md` has the results."""
