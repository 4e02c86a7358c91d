"""The loop for CPUs that keeps the rows of a batch in columns."""

from tests.support.conformance import Conformance, SecondDerivative


class TestColumns(SecondDerivative, Conformance):
    implementation = "columns"
