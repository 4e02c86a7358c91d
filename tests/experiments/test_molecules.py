"""Test the random molecules and the check of SMILES strings."""

import re

import pytest

from experiments import Holds, _molecules, molecules

pytestmark = pytest.mark.once


def test_drawn_molecules_are_valid_and_different() -> None:
    drawn = _molecules.molecules(300, seed=1)
    assert len(set(drawn)) == 300
    assert [_molecules.fault(molecule) for molecule in drawn] == [None] * 300
    assert drawn == _molecules.molecules(300, seed=1)


@pytest.mark.parametrize(
    "smiles",
    [
        "C",
        "O=C=O",
        "c1ccccc1",
        "C12CC1C2",
        "C1CC=1",
        "C=1CC=1",
        "CC(C)(C)C",
        "C[N+](=O)[O-]",
        "N[C@@H](C)C(=O)O",
        "c1cc[nH]c1",
        "ClCBr",
        "CS(=O)(=O)N",
    ],
)
def test_valid_molecules(smiles: str) -> None:
    assert _molecules.fault(smiles) is None


@pytest.mark.parametrize(
    ("smiles", "fault"),
    [
        ("", "a character is not part of"),
        ("CXC", "a character is not part of"),
        ("[CC", "a character is not part of"),
        ("C C", "a character is not part of"),
        ("C1CC(=O)C", "ring 1 is not closed"),
        ("C11", "a ring closure repeats a bond"),
        ("C1C1", "a ring closure repeats a bond"),
        ("C=1CC#1", "ring 1 is opened and closed by different bonds"),
        ("C(C", "a branch is not closed"),
        ("CC)", "a branch is closed that is not open"),
        ("C()C", r"\) is at the wrong place"),
        ("C=(C)", r"\( is at the wrong place"),
        ("(C)C", r"\( is at the wrong place"),
        ("1CC1", "1 is at the wrong place"),
        ("C(1CC)1", "1 is at the wrong place"),
        ("=C", "= is at the wrong place"),
        ("C==C", "= is at the wrong place"),
        ("C=", "the last bond leads nowhere"),
        ("C[Xx]", r"\[Xx\] is not an atom"),
    ],
)
def test_the_fault_of_an_invalid_molecule(smiles: str, fault: str) -> None:
    found = _molecules.fault(smiles, valences=False)
    assert found is not None and re.match(fault, found)


@pytest.mark.parametrize(
    ("smiles", "fault"),
    [
        ("CC(C)(C)(C)C", "C has 5 bonds"),
        ("C#C=C", "C has 5 bonds"),
        ("C=F", "F has 2 bonds"),
        ("CN(C)(C)C", "N has 4 bonds"),
        ("C1CO1C", "O has 3 bonds"),
        ("CCl(C)", "Cl has 2 bonds"),
    ],
)
def test_an_atom_with_too_many_bonds(smiles: str, fault: str) -> None:
    assert _molecules.fault(smiles, valences=False) is None
    assert _molecules.fault(smiles) == fault


@pytest.mark.parametrize(
    ("valid", "new", "holds"),
    [
        ((0.85, 0.88, 0.91), 0.8, Holds.YES),
        ((0.85, 0.852, 0.87), 0.8, Holds.PARTLY),
        ((0.9, 0.88, 0.85), 0.8, Holds.PARTLY),
        ((0.85, 0.88, 0.91), 0.2, Holds.NO),
        ((0.5, 0.6, 0.7), 0.8, Holds.NO),
    ],
)
def test_the_claim_needs_valid_and_new_molecules_and_two_gains(
    valid: tuple[float, float, float], new: float, holds: Holds
) -> None:
    found = {
        kind: [{"valid": share, "new": new}, {"valid": share + 0.002, "new": new}]
        for kind, share in zip(molecules.KINDS, valid, strict=True)
    }
    assert molecules.verdict({"found": found}, [0, 1]).holds is holds
