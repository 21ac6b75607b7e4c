import { SortieError, shown } from "../errors.ts";

/** Throws `invalid-definition` unless each of the options is a whole number from 1. */
export function assertCounts(options: Readonly<Record<string, number>>, what: string): void {
  for (const [option, value] of Object.entries(options)) {
    if (Number.isInteger(value) && value >= 1) continue;
    throw new SortieError(
      "invalid-definition",
      `${what}: expected ${option} to be a whole number from 1, got ${shown(value)}`,
    );
  }
}
