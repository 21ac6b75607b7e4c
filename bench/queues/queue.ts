/** A job queue with a server of its own, started for the bench and gone with it. */
export interface Queue extends AsyncDisposable {
  readonly name: string;
  /** What it runs on, and how what it stores is made safe. */
  readonly server: string;
  /** How it takes jobs: what its documentation recommends where they are many and short. */
  readonly settings: string;
  /** How many of the jobs that the others get it can do in a run that is not much longer than theirs. @default 1 */
  readonly share?: number;
  /** Inserts jobs that wait. */
  fill(count: number): Promise<void>;
  /** Handles that many with a handler that does nothing; answers when the server has taken note of the last one. */
  drain(count: number): Promise<void>;
}

/** Runs `insert` for a thousand jobs at a time. */
export async function byThousands(
  count: number,
  insert: (from: number, to: number) => Promise<unknown>,
): Promise<void> {
  for (let from = 0; from < count; from += 1_000) await insert(from, Math.min(count, from + 1_000));
}

export function range<T>(from: number, to: number, of: (n: number) => T): T[] {
  return Array.from({ length: to - from }, (_, at) => of(from + at));
}
