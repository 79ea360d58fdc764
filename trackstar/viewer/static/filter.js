// Filter expressions: a small language, read by the parser below and by nothing else.
//
//   relation = "P36" and (rank > 1 or not correct)      frequency >= 10      prompt ~ "capital"      rank@1 < rank@2
//
// or, and, not, parentheses; = != < <= > >= ~ (contains, whatever the case) !~; "text", 'text', numbers, true, false,
// null; names of fields, `in backquotes` where they hold other characters, @2 for the second run.

export class FilterError extends Error {
  constructor(message, place) {
    super(message);
    this.place = place;
  }
}

const LONGEST = 2000;
const DEEPEST = 50;
const OPERATORS = ["!=", "!~", "<=", ">=", "==", "=", "<", ">", "~"];
const NUMBER = /-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\p{L}\p{N}_.])/uy;
const FIELD = /(?:[\p{L}\p{N}_][\p{L}\p{N}_.-]*)/uy;
const RUN = /@([1-9]\d?)/y;
const CONSTANTS = new Map([["true", true], ["false", false], ["null", null]]);

/** Reads an expression: a function of `valueOf(name, run)`, run null or counted from 1, to true or false. Throws FilterError. */
export function parseFilter(source) {
  if (source.length > LONGEST) throw new FilterError(`longer than ${LONGEST} characters`, LONGEST);
  const reader = new Reader(tokensOf(source), source.length);
  const expression = reader.either(0);
  reader.expectEnd();
  return (valueOf) => isTrue(expression(valueOf));
}

/** Names of the fields that an expression asks for. */
export function namesIn(source) {
  return tokensOf(source).filter((token) => token.kind === "name").map((token) => token.value);
}

function tokensOf(source) {
  const tokens = [];
  let place = 0;
  const sticky = (pattern) => {
    pattern.lastIndex = place;
    return pattern.exec(source);
  };
  while (place < source.length) {
    const character = source[place];
    const start = place;
    if (/\s/u.test(character)) {
      place++;
    } else if (character === "(" || character === ")") {
      tokens.push({ kind: character, start });
      place++;
    } else if (character === '"' || character === "'" || character === "`") {
      const [value, end] = quoted(source, place);
      place = end;
      tokens.push(character === "`" ? named(value, start) : { kind: "value", value, start });
    } else if (sticky(NUMBER)) {
      const [text] = sticky(NUMBER);
      place += text.length;
      tokens.push({ kind: "value", value: Number(text), start });
    } else if (OPERATORS.some((operator) => source.startsWith(operator, place))) {
      const operator = OPERATORS.find((candidate) => source.startsWith(candidate, place));
      place += operator.length;
      tokens.push({ kind: "operator", value: operator === "==" ? "=" : operator, start });
    } else if (sticky(FIELD)) {
      const [text] = sticky(FIELD);
      place += text.length;
      const word = text.toLowerCase();
      if (word === "and" || word === "or" || word === "not") tokens.push({ kind: word, start });
      else if (CONSTANTS.has(word)) tokens.push({ kind: "value", value: CONSTANTS.get(word), start });
      else tokens.push(named(text, start));
    } else {
      throw new FilterError(`unexpected ${character}`, place);
    }
  }
  return tokens;

  function named(value, start) {
    const run = sticky(RUN);
    if (run) place += run[0].length;
    return { kind: "name", value, run: run ? Number(run[1]) : null, start };
  }
}

function quoted(source, start) {
  const mark = source[start];
  let value = "";
  for (let place = start + 1; place < source.length; place++) {
    if (source[place] === mark) return [value, place + 1];
    if (source[place] === "\\" && place + 1 < source.length) place++;
    value += source[place];
  }
  throw new FilterError(`${mark} is not closed`, start);
}

class Reader {
  constructor(tokens, length) {
    this.tokens = tokens;
    this.length = length;
    this.next = 0;
  }

  take(kind) {
    const found = this.tokens[this.next]?.kind === kind;
    if (found) this.next++;
    return found ? this.tokens[this.next - 1] : null;
  }

  fail(expected) {
    throw new FilterError(`expected ${expected}`, this.tokens[this.next]?.start ?? this.length);
  }

  expectEnd() {
    if (this.next < this.tokens.length) this.fail("and, or, or the end");
  }

  either(depth) {
    const parts = [this.both(depth)];
    while (this.take("or")) parts.push(this.both(depth));
    return parts.length === 1 ? parts[0] : (valueOf) => parts.some((part) => isTrue(part(valueOf)));
  }

  both(depth) {
    const parts = [this.negated(depth)];
    while (this.take("and")) parts.push(this.negated(depth));
    return parts.length === 1 ? parts[0] : (valueOf) => parts.every((part) => isTrue(part(valueOf)));
  }

  negated(depth) {
    if (depth > DEEPEST) this.fail("an expression less deep");
    if (!this.take("not")) return this.comparison(depth);
    const inner = this.negated(depth + 1);
    return (valueOf) => !isTrue(inner(valueOf));
  }

  comparison(depth) {
    const left = this.operand(depth);
    const operator = this.take("operator");
    if (!operator) return left;
    const right = this.operand(depth);
    return (valueOf) => compare(operator.value, left(valueOf), right(valueOf));
  }

  operand(depth) {
    if (this.take("(")) {
      const inner = this.either(depth + 1);
      if (!this.take(")")) this.fail(")");
      return inner;
    }
    const value = this.take("value");
    if (value) return () => value.value;
    const name = this.take("name");
    if (name) return (valueOf) => valueOf(name.value, name.run) ?? null;
    return this.fail("a field, a number or a text in quotes");
  }
}

/** A value by itself: a field that is there and not false, 0 or empty. */
function isTrue(value) {
  return value !== null && value !== false && value !== "" && value !== 0;
}

/** Comparisons with nothing are false, but = and != tell whether there is something. Numbers in texts count as numbers. */
function compare(operator, left, right) {
  if (operator === "~") return contains(left, right);
  if (operator === "!~") return !contains(left, right);
  if (operator === "=") return isEqual(left, right);
  if (operator === "!=") return !isEqual(left, right);
  if (left === null || right === null) return false;
  const [a, b] = typeof left === "number" || typeof right === "number" ? [asNumber(left), asNumber(right)] : [left, right];
  if (typeof a !== typeof b) return false;
  if (operator === "<") return a < b;
  if (operator === "<=") return a <= b;
  if (operator === ">") return a > b;
  return a >= b;
}

function contains(left, right) {
  return left !== null && right !== null && String(left).toLowerCase().includes(String(right).toLowerCase());
}

function isEqual(left, right) {
  if (left === null || right === null) return left === right;
  if (typeof left === "number" || typeof right === "number") return asNumber(left) === asNumber(right);
  return String(left) === String(right);
}

function asNumber(value) {
  if (typeof value === "boolean") return Number(value);
  return typeof value === "string" && value.trim() === "" ? NaN : Number(value);
}
