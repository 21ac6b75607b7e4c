import { SortieError, shown } from "./errors.ts";

/** A century: the server counts nanoseconds, in which three do not fit. */
export const longestMs = 100 * 365 * 86_400_000;

const unitMs = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** A length of time: milliseconds, or a number with its unit, as in `"30s"`, `"1.5h"` or `"7d"`. */
export type Duration = number | `${number}${keyof typeof unitMs}`;

/** Milliseconds of a duration. `what` names the option in the error that a malformed one throws. */
export function toMs(duration: Duration, what: string): number {
  const match = typeof duration === "string" ? /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(duration) : null;
  const ms =
    typeof duration === "number" ? duration : match ? Number(match[1]) * unitMs[match[2] as keyof typeof unitMs] : NaN;
  if (!(ms >= 0 && ms <= longestMs)) {
    throw new SortieError(
      "invalid-option",
      `${what}: expected milliseconds or a duration such as "30s", "5m" or "7d", got ${shown(duration)}`,
    );
  }
  return Math.round(ms);
}
