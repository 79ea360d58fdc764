"""What a run will take, before it starts: an explicit model of work, rates and prices."""
