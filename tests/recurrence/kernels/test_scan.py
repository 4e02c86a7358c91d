"""The scan, which is the reference and runs everywhere."""

from tests.support.conformance import Conformance, SecondDerivative


class TestScan(SecondDerivative, Conformance):
    implementation = "scan"
