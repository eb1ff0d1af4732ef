"""Everything that observes: each probe writes down what it sees and computes nothing."""
