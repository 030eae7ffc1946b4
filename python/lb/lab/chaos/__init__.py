"""`lb chaos`: everything that can happen to a balancer, at random, and what became of the flows meanwhile."""
