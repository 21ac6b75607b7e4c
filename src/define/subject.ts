import { SortieError } from "../errors.ts";

/** The literal subjects that a pattern stands for: `orders.*.placed` is `orders.${string}.placed`. */
export type Literal<Pattern extends string> = Pattern extends `${infer Head}*${infer Tail}`
  ? `${Head}${string}${Literal<Tail>}`
  : Pattern extends `${infer Head}>`
    ? `${Head}${string}`
    : Pattern;

/** Whether every subject of `Subject` (which may be a pattern) is matched by `Pattern`, token by token. */
export type Covers<Pattern extends string, Subject extends string> = Pattern extends ">"
  ? true
  : Pattern extends `${infer PatternHead}.${infer PatternTail}`
    ? Subject extends `${infer SubjectHead}.${infer SubjectTail}`
      ? CoversToken<PatternHead, SubjectHead> extends true
        ? Covers<PatternTail, SubjectTail>
        : false
      : false
    : Subject extends `${string}.${string}` | ">"
      ? false
      : CoversToken<Pattern, Subject>;

type CoversToken<Pattern extends string, Token extends string> = Pattern extends "*"
  ? true
  : Token extends Pattern
    ? true
    : false;

/** Whether every subject that `subject` (which may be a pattern) stands for is matched by `pattern`. */
export function covers(pattern: string, subject: string): boolean {
  const want = pattern.split(".");
  const have = subject.split(".");
  for (const [index, token] of want.entries()) {
    if (token === ">") return have.length > index;
    const other = have[index];
    if (other === undefined || other === ">" || (token !== "*" && token !== other)) return false;
  }
  return want.length === have.length;
}

/** Whether there is a subject that both patterns match. */
export function overlaps(one: string, other: string): boolean {
  const [these, those] = [one.split("."), other.split(".")];
  for (const [index, token] of these.entries()) {
    const also = those[index];
    if (also === undefined) return false;
    if (token === ">" || also === ">") return true;
    if (token !== "*" && also !== "*" && token !== also) return false;
  }
  return these.length === those.length;
}

/** Throws `invalid-definition` unless `subject` is one that NATS accepts in a stream or a filter. */
export function assertPattern(subject: string, what: string): void {
  const tokens = subject.split(".");
  const wellFormed = tokens.every(
    (token, index) => token === "*" || (token === ">" && index === tokens.length - 1) || isToken(token),
  );
  if (!wellFormed) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected a NATS subject such as "orders.placed", "orders.*.placed" or "orders.>", got "${subject}"`,
    );
  }
}

/** Whether messages can be published to `subject`: no wildcard, no empty token, no white space. */
export function isLiteral(subject: string): boolean {
  return subject.split(".").every(isToken);
}

/** Throws `invalid-definition` unless `name` can name a stream or a consumer. */
export function assertName(name: string, what: string): void {
  // the server takes "~" as well, which stands between two names in one of ours
  if (!/^[^\s.*>/\\~"]{1,255}$/.test(name) || !isToken(name)) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected a name without white space, quotes, ".", "*", ">", "/", "\\" and "~", got "${name}"`,
    );
  }
}

function isToken(token: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
  return /^[^\s.*>\x00-\x1f\x7f]+$/.test(token);
}
