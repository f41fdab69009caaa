# SPDX-License-Identifier: Apache-2.0
"""Translates SASS into Python, as far as control flow and addresses depend on it.

The translation follows one lane, the first of a warp. Integers, predicates, conversions and simple
arithmetic in fp32 have their values; what is loaded, and what tensor cores and float64 give, is 0.
So a branch is right if it depends on arguments, on the numbers of thread and block, and on loaded
values that may be 0.

Names in the code: R and P are registers and predicates, U and Q the uniform ones, C the words of
the constant bank, X the special registers, M a mask of 32 bits, B the bit of the sign.
"""

import re
import struct
from collections.abc import Callable
from functools import partial

from sass import Instruction

COMPARE = {"GE": ">=", "GT": ">", "LE": "<=", "LT": "<", "EQ": "==", "NE": "!="}
COMPARE |= {f"{name}U": sign for name, sign in COMPARE.items()}
COMBINE = {"AND": "and", "OR": "or", "XOR": "!="}
MASK = "&M"


def text_of(operand: str) -> str:
    """Returns an operand without what does not change its value."""
    return re.sub(r"\.(reuse|64|U32|H[01]_H[01])\b", "", operand).strip()


def register(operand: str, offset: int = 0) -> str:
    """Returns the place of a register, or of one that follows it."""
    found = re.fullmatch(r"(U?)R(\d+)", text_of(operand))
    if found is None:
        raise ValueError(operand)
    return f"{'U' if found[1] else 'R'}[{int(found[2]) + offset}]"


def predicate(operand: str) -> str:
    """Returns the value of a predicate."""
    found = re.fullmatch(r"(!?)(U?)P(\d|T)", operand)
    if found is None:
        raise ValueError(operand)
    value = "True" if found[3] == "T" else f"{'Q' if found[2] else 'P'}[{found[3]}]"
    return f"(not {value})" if found[1] else value


def constant(operand: str, offset: int = 0) -> str | None:
    """Returns a word of the constant bank, or None for another operand."""
    found = re.fullmatch(r"c\[0x0\]\[(?:(U?R\d+)\+)?(?:0x([0-9a-f]+))?\]", operand)
    if found is None:
        return None
    index = f"{int(found[2] or '0', 16) // 4 + offset}"
    return f"C[{index}+({register(found[1])}>>2)]" if found[1] else f"C[{index}]"


def word(operand: str, offset: int = 0) -> str:
    """Returns 32 bits.

    With a minus it is the complement to 2^32, so that a sum without a borrow has a carry.
    """
    text = text_of(operand)
    if text in ("RZ", "URZ", "SRZ", ""):
        return "0"
    if text in ("-RZ", "-URZ"):
        return "4294967296"
    if text[0] == "-" and not re.fullmatch(r"-(0x[0-9a-f]+|\d+)", text):
        return f"(4294967296-{word(text[1:], offset)})"
    if text[0] == "~":
        return f"({word(text[1:], offset)}^M)"
    if text[0] == "|":
        return f"({word(text[1:-1], offset)}&0x7fffffff)"
    if re.fullmatch(r"U?R\d+", text):
        return register(text, offset)
    bank = constant(text, offset)
    if bank:
        return bank
    if text.startswith("c["):
        return "0"
    number = int(text, 0) & 0xFFFFFFFFFFFFFFFF
    return str(number >> 32 * offset & 0xFFFFFFFF)


def pair(operand: str) -> str:
    """Returns 64 bits."""
    text = text_of(operand)
    if text in ("RZ", "URZ"):
        return "0"
    if text[0] == "-":
        return f"(-{pair(text[1:])}&0xffffffffffffffff)"
    return f"({word(text)}|{word(text, 1)}<<32)"


def signed(value: str, bit: str = "B") -> str:
    """Returns a value as a number with a sign."""
    return f"(({value}{MASK if bit == 'B' else ''}^{bit})-{bit})"


def real(operand: str) -> str:
    """Returns a number in fp32."""
    text = text_of(operand)
    if text in ("RZ", "URZ", "-RZ"):
        return "0.0"
    if text[0] == "-":
        return f"(-{real(text[1:])})"
    if text[0] == "|":
        return f"abs({real(text[1:-1])})"
    if re.search(r"R\d|^c\[", text):
        return f"real({word(text)})"
    named = {"INF": "inf", "QNAN": "nan", "SNAN": "nan"}.get(text.lstrip("+"))
    return named or (f"real({text})" if text.startswith("0x") else repr(float(text)))


def is_predicate(operand: str) -> bool:
    """Returns whether an operand is a predicate."""
    return re.fullmatch(r"!?U?P(\d|T)", operand) is not None


def assign(operand: str, value: str) -> list[str]:
    """Stores into an operand if it is a register or predicate."""
    if re.fullmatch(r"U?P\d", operand):
        return [f"{predicate(operand)} = {value}"]
    if re.fullmatch(r"U?R\d+", text_of(operand)):
        return [f"{register(operand)} = {value}"]
    return []


def assign_pair(operand: str, value: str) -> list[str]:
    """Stores into two registers."""
    if not re.fullmatch(r"U?R\d+", text_of(operand)):
        return []
    return [
        f"t = {value}",
        f"{register(operand)} = t&M",
        f"{register(operand, 1)} = t>>32&M",
    ]


def parts(i: Instruction) -> tuple[str, list[str], list[str], list[str]]:
    """Returns the result, its carries, the operands, and the predicates at the end."""
    first, *rest = i.operands
    carries = []
    while rest and re.fullmatch(r"U?P(\d|T)", rest[0]):
        carries.append(rest.pop(0))
    values = [x for x in rest if not is_predicate(x)]
    return first, carries, values, [x for x in rest if is_predicate(x)]


def added(i: Instruction, total: str, result: str, carries: list[str]) -> list[str]:
    """Stores a sum and its carries."""
    lines = [f"t = {total}", *assign(result, "t&M")]
    for n, carry in enumerate(carries):
        lines += assign(carry, f"t>>32>{n}")
    return lines


def carry_in(i: Instruction, predicates: list[str]) -> str:
    """Returns what the carry predicates add."""
    return "".join(f"+{predicate(p)}" for p in predicates) if "X" in i.suffixes else ""


def add(i: Instruction) -> list[str]:
    """Translates IADD3, UIADD3 and VIADD."""
    result, carries, values, last = parts(i)
    return added(i, "+".join(map(word, values)) + carry_in(i, last), result, carries)


def multiply_add(i: Instruction) -> list[str]:
    """Translates IMAD and UIMAD."""
    result, carries, (a, b, c), last = parts(i)
    unsigned = "U32" in i.suffixes
    number = (lambda x: f"({word(x)}{MASK})") if unsigned else (lambda x: signed(word(x)))
    if "WIDE" in i.suffixes:
        total = f"{number(a)}*{number(b)}+{pair(c)}{carry_in(i, last)}"
        lines = assign_pair(result, f"({total})&0xffffffffffffffff")
        return lines + [x for carry in carries for x in assign(carry, f"({total})>>64>0")]
    if "HI" in i.suffixes:
        return assign(result, f"({number(a)}*{number(b)}+{pair(c)})>>32&M")
    return assign(result, f"({word(a)}*{word(b)}+{word(c)}{carry_in(i, last)})&M")


def load_address(i: Instruction) -> list[str]:
    """Translates LEA and ULEA, which shift and add."""
    result, carries, values, last = parts(i)
    if "HI" not in i.suffixes:
        a, b, shift = values[0], values[1], values[-1]
        return added(i, f"(({word(a)}<<{word(shift)})&M)+{word(b)}", result, carries)
    if "SX32" in i.suffixes:
        a, b, shift = values
        high = f"({signed(word(a))}>>32-{word(shift)})&M"
    else:
        a, b, c, shift = values
        high = f"(({word(a)}{MASK}|({word(c)}{MASK})<<32)<<{word(shift)}>>32)&M"
    return added(i, f"({high})+{word(b)}{carry_in(i, last)}", result, carries)


def table(lut: int, a: str, b: str, c: str) -> str:
    """Returns the bitwise function of three words with a truth table."""
    known = {0xC0: f"{a}&{b}", 0xFC: f"{a}|{b}", 0x3C: f"{a}^{b}", 0xFE: f"{a}|{b}|{c}"}
    known |= {0x33: f"{b}^M", 0x78: f"{a}^{b}&{c}", 0xF8: f"{a}|{b}&{c}", 0x96: f"{a}^{b}^{c}"}
    if lut in known:
        return f"({known[lut]})"
    terms = []
    for n in range(8):
        if lut >> n & 1:
            bits = [x if n >> 2 - k & 1 else f"({x}^M)" for k, x in enumerate((a, b, c))]
            terms.append("&".join(bits))
    return f"({'|'.join(terms) or '0'})"


def logic(i: Instruction) -> list[str]:
    """Translates LOP3 and ULOP3."""
    operands = list(i.operands)
    flag = operands.pop(0) if is_predicate(operands[0]) else None
    result, a, b, c, lut = operands[:5]
    lines = [f"t = {table(int(lut, 16), *(f'({word(x)}{MASK})' for x in (a, b, c)))}"]
    return lines + assign(result, "t") + (assign(flag, "t != 0") if flag else [])


def predicate_logic(i: Instruction) -> list[str]:
    """Translates PLOP3 and UPLOP3."""
    first, second, a, b, c, lut, *others = i.operands
    index = f"({predicate(a)}<<2|{predicate(b)}<<1|{predicate(c)})"
    lines = [f"t = {index}", *assign(first, f"({lut}>>t&1) != 0")]
    return lines + (assign(second, f"({others[0]}>>t&1) != 0") if others else [])


def shift(i: Instruction) -> list[str]:
    """Translates SHF and USHF, which shift a pair of words."""
    result, low, amount, high = i.operands
    count, kinds = f"min({word(amount)}{MASK},64)", set(i.suffixes)
    if "L" in kinds:
        if "HI" in kinds:
            value = f"(({word(low)}|{word(high)}<<32)<<{count})>>32"
        else:
            value = f"{word(low)}<<min({count},32)"
    elif "HI" in kinds and {"U32", "S32"} & kinds:
        whole = signed(word(high)) if "S32" in kinds else word(high)
        value = f"{whole}>>min({count},32)"
    else:
        whole = signed(word(high)) if "S64" in kinds else word(high)
        value = f"(({whole}<<32)|{word(low)})>>{count}"
        value = f"({value})>>32" if "HI" in kinds else value
    return assign(result, f"({value})&M")


def compare(i: Instruction) -> list[str]:
    """Translates ISETP and UISETP."""
    first, second, a, b, *last = i.operands
    sign, combine = i.suffixes[0], next(x for x in i.suffixes if x in COMBINE)
    if {"S64", "U64"} & set(i.suffixes):
        convert = (lambda x: signed(pair(x), "(1<<63)")) if "S64" in i.suffixes else pair
    elif "U32" in i.suffixes:
        convert = partial(lambda x: f"({word(x)}{MASK})")
    else:
        convert = partial(lambda x: signed(word(x)))
    test = f"{convert(a)}{COMPARE[sign]}{convert(b)}"
    if "EX" in i.suffixes:  # the words above those that the last predicate compares
        below = predicate(last[-1])
        strict = COMPARE[sign].replace("=", "") if sign in ("GE", "LE") else COMPARE[sign]
        equal = f"{convert(a)}=={convert(b)} and {below}"
        test = f"({test} or {below})" if sign == "NE" else f"({equal})"
        if sign not in ("NE", "EQ"):
            test = f"({convert(a)}{strict}{convert(b)} or ({equal}))"
    other = predicate(last[0]) if last else "True"
    lines = [f"t, u = bool({test}), {other}", *assign(second, f"(not t) {COMBINE[combine]} u")]
    return lines + assign(first, f"t {COMBINE[combine]} u")


def compare_real(i: Instruction) -> list[str]:
    """Translates FSETP."""
    first, second, a, b, *last = i.operands
    combine = next(x for x in i.suffixes if x in COMBINE)
    other = predicate(last[0]) if last else "True"
    sign = i.suffixes[0]
    if sign == "NAN":
        test = f"({real(a)} != {real(a)} or {real(b)} != {real(b)})"
    elif sign == "NUM":
        test = f"({real(a)} == {real(a)} and {real(b)} == {real(b)})"
    else:
        test = f"{real(a)}{COMPARE[sign]}{real(b)}"
    lines = [f"t, u = bool({test}), {other}", *assign(second, f"(not t) {COMBINE[combine]} u")]
    return lines + assign(first, f"t {COMBINE[combine]} u")


def choose(i: Instruction) -> list[str]:
    """Translates SEL, USEL and FSEL."""
    result, a, b, which = i.operands
    if i.name == "FSEL":
        values = [f"fp32({real(x)})" if "R" not in text_of(x) else word(x) for x in (a, b)]
    else:
        values = [word(a), word(b)]
    return assign(result, f"({values[0]} if {predicate(which)} else {values[1]})&M")


def least(i: Instruction) -> list[str]:
    """Translates IMNMX, VIMNMX, UVIMNMX and VIADDMNMX.

    If the last predicate is false, the result is the greater number.
    """
    result, _, values, last = parts(i)
    number = (lambda x: f"({x}{MASK})") if "U32" in i.suffixes else signed
    if i.name == "VIADDMNMX":
        values = [f"({word(values[0])}+{word(values[1])})", word(values[2])]
    else:
        values = [word(x) for x in values]
    a, b = (number(x) for x in values)
    value = f"(min({a},{b}) if {predicate(last[-1])} else max({a},{b}))"
    return assign(result, f"(max({value},0) if {'RELU' in i.suffixes} else {value})&M")


def permute(i: Instruction) -> list[str]:
    """Translates PRMT and UPRMT."""
    result, a, selector, b = i.operands
    return assign(result, f"permute({word(a)}{MASK},{word(selector)},{word(b)}{MASK})")


def load_constant(i: Instruction) -> list[str]:
    """Translates LDC, ULDC and LDCU."""
    result, source = i.operands
    found = re.fullmatch(r"c\[0x0\]\[(?:(U?R\d+)\+)?(?:0x([0-9a-f]+))?\]", source)
    if found is None or text_of(result) in ("RZ", "URZ"):
        return zero(i)
    count = {"64": 2, "128": 4}.get(i.suffixes[0] if i.suffixes else "", 1)
    lines = [f"{register(result, n)} = {constant(source, n)}" for n in range(count)]
    if i.suffixes[:1] == ("U8",):
        lines[0] = f"{lines[0]}>>{int(found[2] or '0', 16) % 4 * 8}&255"
    return lines


def zero(i: Instruction) -> list[str]:
    """Stores 0 into as many registers as the result has, since it is not known."""
    result, carries, _, _ = parts(i) if i.operands else ("", [], [], [])
    if is_predicate(result):
        _, *rest = i.operands
        carries = [result, *carries]
        result = next((x for x in rest if not is_predicate(x)), "")
    lines = [line for carry in carries for line in assign(carry, "False")]
    if not re.fullmatch(r"U?R\d+", text_of(result)):
        return lines
    suffixes = set(i.suffixes)
    wide = {"64", "F64", "S64", "U64", "WIDE"} & suffixes and i.suffixes[-1:] != ("F64",)
    count = 4 if i.name in ("HMMA", "LDSM") or "128" in suffixes else 1
    if count == 1 and (wide or i.name[0] == "D" or i.name == "CS2R"):
        count = 2
    if i.name == "CS2R" and "32" in suffixes:
        count = 1
    return lines + [f"{register(result, n)} = 0" for n in range(count)]


def half(i: Instruction) -> list[str]:
    """Translates HFMA2 of zeros and immediate numbers, which gives the numbers."""
    values = [text_of(x) for x in i.operands[1:]]
    if values[:2] in (["-RZ", "RZ"], ["RZ", "RZ"]) and len(values) == 4:
        words = [struct.unpack("<H", struct.pack("<e", float(x)))[0] for x in values[2:]]
        return assign(i.operands[0], str(words[0] << 16 | words[1]))
    return zero(i)


def convert_to_real(i: Instruction) -> list[str]:
    """Translates I2F, I2FP, UI2F and UI2FP."""
    result, source = i.operands
    if "F64" in i.suffixes:
        return zero(i)
    if {"S64", "U64"} & set(i.suffixes):
        value = pair(source)
    else:
        value = word(source) if "U32" in i.suffixes else signed(word(source))
    return assign(result, f"fp32({value}{MASK if 'U32' in i.suffixes else ''})")


def convert_to_integer(i: Instruction) -> list[str]:
    """Translates F2I."""
    result, source = i.operands
    if "F64" in i.suffixes:
        return assign_pair(result, "0") if {"S64", "U64"} & set(i.suffixes) else zero(i)
    if {"S64", "U64"} & set(i.suffixes):
        return assign_pair(result, f"integer({real(source)}, 0, (1<<64)-1)")
    low, high = ("0", "M") if "U32" in i.suffixes else ("-B", "B-1")
    return assign(result, f"integer({real(source)}, {low}, {high})&M")


def function(i: Instruction) -> list[str]:
    """Translates MUFU."""
    name = i.suffixes[0].lower()
    if i.suffixes[0] not in ("RCP", "RSQ", "EX2", "LG2", "SQRT", "SIN", "COS"):
        return zero(i)
    return assign(i.operands[0], f"fp32({name}({real(i.operands[1])}))")


def arithmetic(i: Instruction) -> list[str]:
    """Translates FADD, FMUL, FFMA, FMNMX and FRND."""
    result, *sources = i.operands
    values = [real(x) for x in sources if not is_predicate(x)]
    a, b = values[0], values[min(1, len(values) - 1)]
    if i.name == "FMNMX":
        value = f"(min({a},{b}) if {predicate(sources[-1])} else max({a},{b}))"
    elif i.name == "FRND":
        value = f"float(integer({a}, -(1<<40), 1<<40))"
    elif i.name == "FFMA":
        value = f"{a}*{b}+{values[2]}"
    else:
        value = f"{a}{'+' if i.name == 'FADD' else '*'}{b}"
    return assign(result, f"fp32({value})")


def pack_predicates(i: Instruction) -> list[str]:
    """Translates P2R and R2P."""
    if i.name == "R2P":
        source, mask = i.operands[1], int(i.operands[2], 16)
        return [f"P[{n}] = ({word(source)}>>{n}&1) != 0" for n in range(7) if mask >> n & 1]
    result, _, source, mask_text = i.operands
    mask = int(mask_text, 16)
    bits = "|".join(f"P[{n}]<<{n}" for n in range(7) if mask >> n & 1) or "0"
    return assign(result, f"({word(source)}&{~mask & 0xFFFFFFFF})|{bits}")


def special(i: Instruction) -> list[str]:
    """Translates S2R and S2UR, which read the numbers of thread and block."""
    return assign(i.operands[0], f"X.get({i.operands[1]!r}, 0)")


def move(i: Instruction) -> list[str]:
    """Translates MOV, UMOV and R2UR."""
    return assign(i.operands[0], f"{word(i.operands[1])}&M")


Translation = Callable[[Instruction], list[str]]
TRANSLATIONS: dict[str, Translation] = {
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD", "IADD", "UIADD"), add),
    **dict.fromkeys(("IMAD", "UIMAD"), multiply_add),
    **dict.fromkeys(("LEA", "ULEA"), load_address),
    **dict.fromkeys(("LOP3", "ULOP3"), logic),
    **dict.fromkeys(("PLOP3", "UPLOP3"), predicate_logic),
    **dict.fromkeys(("SHF", "USHF"), shift),
    **dict.fromkeys(("ISETP", "UISETP"), compare),
    "FSETP": compare_real,
    **dict.fromkeys(("SEL", "USEL", "FSEL"), choose),
    **dict.fromkeys(("IMNMX", "VIMNMX", "UVIMNMX", "VIADDMNMX"), least),
    **dict.fromkeys(("PRMT", "UPRMT"), permute),
    **dict.fromkeys(("LDC", "ULDC", "LDCU"), load_constant),
    "HFMA2": half,
    **dict.fromkeys(("I2F", "I2FP", "UI2FP", "UI2F"), convert_to_real),
    "F2I": convert_to_integer,
    "MUFU": function,
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "FMNMX", "FRND"), arithmetic),
    **dict.fromkeys(("P2R", "R2P"), pack_predicates),
    **dict.fromkeys(("S2R", "S2UR"), special),
    **dict.fromkeys(("MOV", "UMOV", "R2UR"), move),
    "IABS": lambda i: assign(i.operands[0], f"abs({signed(word(i.operands[1]))})&M"),
    "SHFL": lambda i: assign(i.operands[1], word(i.operands[2])),
    "VOTEU": lambda i: assign(i.operands[0], predicate(i.operands[-1])),
}


def translate(i: Instruction) -> list[str]:
    """Returns the Python of an instruction that does not branch."""
    if "F64" in i.suffixes and i.name in ("FRND", "F2F"):
        return zero(i)
    return TRANSLATIONS.get(i.name, zero)(i)
