import { type Duration, toMs } from "../duration.ts";
import { SortieError } from "../errors.ts";
import { assertId } from "../publish/outgoing.ts";

/** When a message is released: after a while, or at a point in time. */
export type When = { in: Duration; at?: never } | { at: Date | string; in?: never };

export type ScheduleOptions = When & {
  /** Names the schedule within its stream: scheduling again with the same name replaces it while it has not fired. */
  id?: string | undefined;
};

const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i;

/** The header that carries a message's id through its release: the server drops `Nats-Msg-Id` there. */
export const idHeader = "Sortie-Id";

/** The point in time that is meant. Throws `invalid-option` for a malformed one. */
export function dueAt(when: When, now: number, what: string): Date {
  if ((when.in === undefined) === (when.at === undefined)) {
    throw new SortieError("invalid-option", `${what}: expected either \`in\` or \`at\``);
  }
  if (typeof when.at === "string" && !rfc3339.test(when.at)) throw malformed(when.at);
  const at = when.in === undefined ? new Date(when.at) : new Date(now + toMs(when.in, what));
  if (Number.isNaN(at.getTime())) throw malformed(when.at ?? when.in);
  return at;

  function malformed(got: unknown): SortieError {
    return new SortieError(
      "invalid-option",
      `${what}: expected \`at\` to be a Date or an RFC 3339 time with its offset, such as "2030-01-01T10:00:00Z", got ${JSON.stringify(got)}`,
    );
  }
}

/** One subject token for any id, different ids giving different tokens. */
export function tokenOf(id: string): string {
  assertId(id, "A schedule");
  return encodeURIComponent(id).replace(/[.*!'()~]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}
