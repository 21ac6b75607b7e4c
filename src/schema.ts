import type { StandardSchemaV1 } from "@standard-schema/spec";
import { InvalidPayloadError, SortieError } from "./errors.ts";

/** Any schema that speaks Standard Schema: zod, valibot, arktype and others. */
export type Schema<Input = unknown, Output = Input> = StandardSchemaV1<Input, Output>;

/** An error is told and logged, and is not to be larger than what it is about. */
const mostIssues = 20;
const longestText = 300;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** JSON as UTF-8 bytes: how every payload is stored. Throws `invalid-payload` for what JSON cannot carry. */
export function encode(subject: string, value: unknown): Uint8Array {
  let json: string | undefined;
  try {
    json = JSON.stringify(value);
  } catch (error) {
    throw new SortieError("invalid-payload", `The payload for "${subject}" cannot be written as JSON: ${error}`, {
      cause: error,
    });
  }
  if (json === undefined) {
    throw new SortieError("invalid-payload", `The payload for "${subject}" must be a JSON value, got ${typeof value}`);
  }
  return encoder.encode(json);
}

/** What reads, checks or writes a value calls itself for each level of it, and has a stack that ends. */
export const deepest = 512;

/** The JSON value of a stored payload. Throws `invalid-payload` for anything else, and for what is nested too deep. */
export function decode(subject: string, payload: Uint8Array): unknown {
  if (isDeep(payload)) {
    throw new SortieError(
      "invalid-payload",
      `The payload of "${subject}" is nested too deep: expected ${deepest} levels at most`,
    );
  }
  try {
    return JSON.parse(decoder.decode(payload));
  } catch (error) {
    throw new SortieError(
      "invalid-payload",
      `The payload of "${subject}" is not JSON in UTF-8 (${payload.length} bytes)`,
      {
        cause: error,
      },
    );
  }
}

/** The schema's output for a value; a promise of it only where the schema answers with one. Throws `InvalidPayloadError` with the failing paths. */
export function validate(subject: string, schema: Schema, value: unknown): unknown {
  const result = schema["~standard"].validate(value);
  return isPromise(result)
    ? Promise.resolve(result).then((later) => outputOf(subject, later))
    : outputOf(subject, result);
}

/** Whether `await` would wait for it. */
export function isPromise<T>(value: T): value is Extract<T, PromiseLike<unknown>> {
  const may = (typeof value === "object" && value !== null) || typeof value === "function";
  return may && "then" in value && typeof value.then === "function";
}

function outputOf(subject: string, result: StandardSchemaV1.Result<unknown>): unknown {
  if (!result.issues) return result.value;
  const issues = result.issues.slice(0, mostIssues).map(({ path, message }) => ({
    path: clipped(pathOf(path ?? [])),
    message: clipped(message),
  }));
  const more = result.issues.length - issues.length;
  throw new InvalidPayloadError(subject, more > 0 ? [...issues, { path: "", message: `… and ${more} more` }] : issues);
}

function clipped(text: string): string {
  return text.length > longestText ? `${text.slice(0, longestText)}…` : text;
}

/** Looked at before it is parsed; the bytes of what is not ASCII are none of these. */
function isDeep(json: Uint8Array): boolean {
  if (json.length <= 2 * deepest) return false; // each level is opened and closed
  let depth = 0;
  let isText = false;
  for (let at = 0; at < json.length; at++) {
    const byte = json[at];
    if (isText) {
      if (byte === 0x5c) at++;
      else if (byte === 0x22) isText = false;
    } else if (byte === 0x22) isText = true;
    else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > deepest) return true;
    } else if (byte === 0x5d || byte === 0x7d) depth--;
  }
  return false;
}

function pathOf(path: NonNullable<StandardSchemaV1.Issue["path"]>): string {
  return path
    .map((segment) => (typeof segment === "object" ? segment.key : segment))
    .reduce<string>(
      (done, key) => (typeof key === "number" ? `${done}[${key}]` : done ? `${done}.${String(key)}` : String(key)),
      "",
    );
}
