"""
Not needed to balance: testbed, load generator, benchmarks, experiments and their pictures. Only commands import it,
lazily.
"""
