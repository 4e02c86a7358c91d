"""Random molecules as SMILES strings, and a check of such strings.

    molecules(20_000)              # a list of different molecules
    fault("C1CC(=O)C")             # "ring 1 is not closed"

SMILES (Weininger 1988) writes a molecule as a walk over its atoms: parentheses enclose branches, two
equal digits close a ring, square brackets enclose an atom with a charge or hydrogens, and lower-case
atoms are aromatic. The check needs no chemistry package: it looks at brackets, branches, bonds, ring
closures and valences. It does not decide whether a ring is aromatic.
"""

from __future__ import annotations

import re
from collections import Counter
from random import Random

# --- drawing molecules ---

# In all of these, {a} and {b} stand for branches and {r} for the digit of a ring.
ENDS = ("C", "C", "O", "N", "F", "Cl", "Br", "OC", "C#N", "C(=O)O", "C(=O)N", "C(F)(F)F")
ENDS += ("[N+](=O)[O-]",)
LINKS = ("C{a}", "CC{a}", "C({a}){b}", "N{a}", "N({a}){b}", "O{a}", "S{a}", "C=C{a}")
LINKS += ("C(=O)N{a}", "C(=O)O{a}", "S(=O)(=O)N{a}", "[C@H]({a}){b}", "[C@@H]({a}){b}")
RINGS = ("c{r}ccc({a})cc{r}", "c{r}cccc({a})c{r}", "c{r}cc({a})ncn{r}", "c{r}cccnc{r}")
RINGS += ("c{r}cc({a})c[nH]{r}", "c{r}ccsc{r}{a}", "C{r}CCC({a})CC{r}", "C{r}CCN({a})C{r}")
RINGS += ("N{r}CCN({a})CC{r}", "N{r}CCOCC{r}", "C{r}CC{r}{a}")
BEGINNINGS = ("C", "CC", "O", "N", "COC", "CN(C)")
# Most parts between the beginning of a molecule and the end of a branch.
DEPTH = 4


def molecules(count: int, seed: int = 0) -> list[str]:
    """Return different random molecules of at most 60 characters."""
    random = Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        molecule = random.choice(BEGINNINGS) + _branch(random, DEPTH, 1)
        if len(molecule) <= 60:
            found[molecule] = None
    return list(found)


def _branch(random: Random, depth: int, ring: int) -> str:
    """Return a random branch of at most `depth` parts, whose rings have digits from `ring` on."""
    kinds = (ENDS, LINKS, RINGS) if depth else (ENDS,)
    part = random.choice(random.choice(kinds))
    inside = ring + (part in RINGS)
    fields = {name: _branch(random, depth - 1, inside) for name in "ab" if f"{{{name}}}" in part}
    return part.format(r=ring, **fields)


# --- checking molecules ---

# The tokens of a SMILES string: atoms, bonds, branches and ring closures.
TOKENS = r"\[[^\]]*\]|Br|Cl|[BCNOPSFIbcnops]|[0-9]|[-=#()]"
# The tokens of more than one character, for `--tokens`; every other character is a separate token.
LONG_TOKENS = r"\[[^\]\n]*\]|Br|Cl"
# An atom in square brackets: element, chirality, hydrogens, charge.
BRACKETED = re.compile(r"\[(B|C|N|O|P|S|F|Cl|Br|I|Si|Se|[bcnops])@{0,2}(H\d?)?([+-]\d?)?\]")
# Largest sum of the bonds of an atom outside of square brackets; an aromatic bond counts as one.
VALENCES = {"B": 3, "C": 4, "N": 3, "O": 2, "P": 5, "S": 6, "F": 1, "Cl": 1, "Br": 1, "I": 1}
VALENCES |= {"b": 3, "c": 3, "n": 3, "o": 2, "p": 3, "s": 2}
BONDS = {"-": 1, "=": 2, "#": 3}


class Fault(ValueError):
    """The first fault of a SMILES string."""


def fault(smiles: str, valences: bool = True) -> str | None:
    """Return the first fault of a SMILES string, or None for a valid one.

    Args:
      smiles: the string.
      valences: whether to check the valences, too.
    """
    try:
        atoms, bonds = _parsed(smiles)
    except Fault as error:
        return str(error)
    for number, symbol in enumerate(atoms if valences else ()):
        if bonds[number] > VALENCES.get(symbol, 8):
            return f"{symbol} has {bonds[number]} bonds"
    return None


def _parsed(smiles: str) -> tuple[list[str], Counter[int]]:
    """Return the atoms of a molecule, and the sum of the bonds of each. Raises Fault."""
    tokens = re.findall(TOKENS, smiles)
    if not tokens or "".join(tokens) != smiles:
        raise Fault("a character is not part of an atom, bond, branch or ring")
    atoms: list[str] = []
    bonds: Counter[int] = Counter()
    pairs: set[frozenset[int]] = set()
    # The atom before each open branch, and the atom and the bond at which each ring was opened.
    branches: list[int] = []
    rings: dict[str, tuple[int, str]] = {}
    here, bond, before = None, "", ""

    def connect(one: int, other: int, symbol: str) -> None:
        if one == other or {one, other} in pairs:
            raise Fault("a ring closure repeats a bond")
        pairs.add(frozenset((one, other)))
        bonds[one] += BONDS.get(symbol, 1)
        bonds[other] += BONDS.get(symbol, 1)

    for token in tokens:
        if token not in BONDS and token not in "()0123456789":
            if token.startswith("[") and not BRACKETED.fullmatch(token):
                raise Fault(f"{token} is not an atom")
            atoms.append(token)
            if here is not None:
                connect(here, len(atoms) - 1, bond)
            here, bond = len(atoms) - 1, ""
        elif (
            here is None
            or (bond and token in "()-=#")
            or (before == "(" and token in "()0123456789")
        ):
            raise Fault(f"{token} is at the wrong place")
        elif token in BONDS:
            bond = token
        elif token == "(":
            branches.append(here)
        elif token == ")":
            if not branches:
                raise Fault("a branch is closed that is not open")
            here = branches.pop()
        elif token in rings:
            other, opened = rings.pop(token)
            if bond and opened and bond != opened:
                raise Fault(f"ring {token} is opened and closed by different bonds")
            connect(other, here, bond or opened)
            bond = ""
        else:
            rings[token] = here, bond
            bond = ""
        before = token
    if bond:
        raise Fault("the last bond leads nowhere")
    if branches:
        raise Fault("a branch is not closed")
    if rings:
        raise Fault(f"ring {min(rings)} is not closed")
    return atoms, bonds
