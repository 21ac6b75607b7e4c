import type { StandardSchemaV1 } from "@standard-schema/spec";
import { InvalidPayloadError, SortieError } from "./errors.ts";

/** Any schema that speaks Standard Schema: zod, valibot, arktype and others. */
export type Schema<Input = unknown, Output = Input> = StandardSchemaV1<Input, Output>;

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

/** The JSON value of a stored payload. Throws `invalid-payload` for anything else. */
export function decode(subject: string, payload: Uint8Array): unknown {
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
  throw new InvalidPayloadError(
    subject,
    result.issues.map(({ path, message }) => ({ path: pathOf(path ?? []), message })),
  );
}

function pathOf(path: NonNullable<StandardSchemaV1.Issue["path"]>): string {
  return path
    .map((segment) => (typeof segment === "object" ? segment.key : segment))
    .reduce<string>(
      (done, key) => (typeof key === "number" ? `${done}[${key}]` : done ? `${done}.${String(key)}` : String(key)),
      "",
    );
}
