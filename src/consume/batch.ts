import type { Message } from "../define/message.ts";
import { SortieError, textOf } from "../errors.ts";
import { isPromise } from "../schema.ts";
import type { BatchBinding, Binding, HandlerContext } from "./handler.ts";

/** What a handler of batches reports: the messages that failed, by their sequence, each with its error. */
export type Failures = ReadonlyMap<number, unknown>;

const none: Failures = new Map();

/** A handler of batches as one of single messages: what is started alone is a batch of one. */
export function oneByOne(handler: BatchBinding["handler"]): Binding["handler"] {
  return (message, { publish, schedule, cancel, signal, remaining }) => {
    const messages = [message];
    const of = (other: Message): Pick<HandlerContext, "publish" | "schedule" | "cancel"> => {
      if (other === message) return { publish, schedule, cancel };
      throw notOfBatch(other);
    };
    const result = handler(messages, { signal, remaining, of });
    return isPromise(result) ? result.then(conclude) : conclude(result);

    function conclude(result: unknown): void {
      const failed = failuresIn(result, messages);
      if (failed.has(message.sequence)) throw failed.get(message.sequence);
    }
  };
}

/**
 * Reads what a handler of batches has returned. Anything but nothing or `{ failed: [...] }` is refused, whole: what was meant
 * to say that messages failed would be taken for their success.
 * @throws SortieError `invalid-option`
 */
export function failuresIn(result: unknown, messages: readonly Message[]): Failures {
  if (result === undefined) return none;
  const failed = typeof result === "object" && result !== null && "failed" in result ? result.failed : undefined;
  if (!Array.isArray(failed)) {
    throw refused(`expected its result to be nothing or { failed: [{ sequence, error }] }, got ${shown(result)}`);
  }
  const known = new Set(messages.map(({ sequence }) => sequence));
  const failures = new Map<number, unknown>();
  for (const each of failed as unknown[]) {
    const { sequence, error } = (typeof each === "object" && each !== null ? each : {}) as Record<string, unknown>;
    if (typeof sequence !== "number" || !known.has(sequence)) {
      throw refused(
        `expected each of failed to have the sequence of one of the batch's messages (${[...known].slice(0, 10).join(", ")}${known.size > 10 ? ", …" : ""}), got ${shown(each)}`,
      );
    }
    if (!failures.has(sequence)) failures.set(sequence, error);
  }
  return failures;
}

export function notOfBatch(message: unknown): SortieError {
  return new SortieError(
    "invalid-option",
    `context.of: expected one of the messages that this handler was given, itself and no copy, got ${shown(message)}`,
  );
}

function refused(why: string): SortieError {
  return new SortieError("invalid-option", `A handler of batches: ${why}`);
}

function shown(value: unknown): string {
  try {
    return (JSON.stringify(value) ?? String(value)).slice(0, 200);
  } catch {
    return textOf(value);
  }
}
