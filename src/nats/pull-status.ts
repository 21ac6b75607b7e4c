import type { Msg } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";

/**
 * How a pull ended: `more` may be waiting; the consumer is `drained` and has nothing to give now; it is `full` and may not
 * give any, for as much is outstanding as may be; the next message alone is `oversized`, with more bytes than were asked
 * for; or it is to be asked `again` in a while, as after a change of leader.
 */
export type PullEnd = "more" | "drained" | "full" | "oversized" | "again";

/**
 * How one request ended. `lapsed`: its time was over before it was given anything; `limited`: by a limit that is known
 * now; `gone`: nobody answers.
 */
export type RequestEnd = PullEnd | "lapsed" | "limited" | "gone" | SortieError;

/** What a consumer allows a request to ask for, as far as it is known. */
export interface Limits {
  batch: number;
  expiresMs: number;
  maxBytes: number;
  /** Whether it limits what may be outstanding. */
  outstanding: boolean;
}

/**
 * What a status of the server ends a request with that has been given `received` messages, when `pending` more were
 * waiting. Limits that it tells of are learnt.
 */
export function endOf(message: Msg, received: number, pending: number, what: string, limits: Limits): RequestEnd {
  const code = message.headers?.code;
  const description = message.headers?.description ?? "";
  switch (code) {
    case 404: // or it may not give any for the moment
      return limits.outstanding && pending > 0 ? "lapsed" : "drained";
    case 408: // its time was over: with nothing to give, when there was nothing more, or in the middle of handing out
      if (/requests pending/i.test(description)) return "full"; // what is there was asked for before
      if (received === 0) return "lapsed";
      return pending > 0 ? "more" : "drained";
    case 409:
      if (learnt(description, limits)) return "limited";
      if (/message size exceeds/i.test(description)) return received > 0 ? "more" : "oversized";
      if (/batch completed/i.test(description)) return "more";
      if (/consumer deleted/i.test(description)) return missing(what);
      if (/leadership change|server shutdown|maxwaiting|interest/i.test(description)) return "again";
      return new SortieError("stream-refused", `${what} refused a pull: ${description}`);
    case 503:
      return "gone";
    default:
      return new SortieError("stream-refused", `${what} answered a pull with status ${code} ${description}`);
  }
}

/** How many messages a request had been given when a status ended it; undefined where the status does not tell. */
export function givenBy(message: Msg, batch: number): number | undefined {
  const { headers } = message;
  if (headers?.description && /batch completed/i.test(headers.description)) return batch;
  const left = headers?.get("Nats-Pending-Messages");
  return left ? batch - Number(left) : undefined;
}

export function missing(what: string, cause?: unknown): SortieError {
  return new SortieError(
    "consumer-missing",
    `${what} does not exist on the server. Create it from its definition: npx sortie apply <the module with your app>`,
    { cause },
  );
}

/** Takes note of a limit that someone has set on the consumer, which every request of ours then keeps. */
function learnt(description: string, limits: Limits): boolean {
  const [, what, value = ""] = /Exceeded MaxRequest(Batch|Expires|MaxBytes) of (\S+)/i.exec(description) ?? [];
  if (what === undefined) return false;
  if (/^batch$/i.test(what)) limits.batch = Number(value);
  else if (/^maxbytes$/i.test(what)) limits.maxBytes = Number(value);
  else limits.expiresMs = durationMs(value);
  return true;
}

const unitMs: Record<string, number> = { h: 3_600_000, m: 60_000, s: 1_000, ms: 1, µs: 1e-3, us: 1e-3, ns: 1e-6 };

/** Go's way of writing a duration: `1m30s`, `1.5s`, `250ms`. */
function durationMs(text: string): number {
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s|µs|us|ns)/g)];
  return parts.reduce((sum, [, amount, unit]) => sum + Number(amount) * (unitMs[unit as string] ?? 0), 0);
}
