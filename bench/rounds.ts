/** One of those that are compared. */
export interface Contender<Figures> {
  readonly name: string;
  /** One run; what it prepares and clears away is not measured. */
  run(): Promise<Figures>;
}

/**
 * Runs the contenders in turn (A B C, A B C, …), so that what the machine does meanwhile meets them all: once to warm up,
 * then `count` times. Answers the figures of each, round by round; `told` hears who is next, and how much is done.
 */
export async function inRounds<Figures>(
  contenders: readonly Contender<Figures>[],
  count: number,
  told: (name: string, done: number) => void,
): Promise<Map<string, Figures[]>> {
  const figures = new Map(contenders.map(({ name }) => [name, [] as Figures[]]));
  for (let round = 0; round <= count; round++) {
    for (const [at, { name, run }] of contenders.entries()) {
      told(name, (round + at / contenders.length) / (count + 1));
      const figure = await run();
      if (round > 0) figures.get(name)?.push(figure);
    }
  }
  return figures;
}

/** The value that a share of them does not exceed. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** How many times the other one it is: the median of the rounds' own ratios, since a noisy round is noisy for both. */
export function ratio(values: readonly number[], others: readonly number[]): number {
  return median(values.map((value, round) => value / (others[round] ?? Number.NaN)));
}
