import { createColors } from "picocolors";

/** A line of a picture: how long its bar is, and what is written behind it. */
interface Bar {
  readonly label: string;
  readonly value: number;
  readonly text: string;
  /** Whether it is Sortie's. */
  readonly ours?: boolean;
}

/** What the bench shows, and the targets that it holds itself to. */
export interface Report {
  section(title: string, what: string): void;
  /** What is being measured, while people wait; `done` of the section from 0 to 1. Only a terminal shows it. */
  progress(what: string, done: number): void;
  picture(title: string, bars: readonly Bar[]): void;
  table(head: readonly string[], rows: readonly (readonly string[])[]): void;
  note(text: string): void;
  target(claim: string, measured: string, reached: boolean): void;
  summary(): void;
}

/** What a section of the bench is given. */
export interface Bench {
  /** Whether people want it soon rather than exact. */
  readonly quick: boolean;
  readonly report: Report;
}

const barWidth = 36;

export function createReport(out: NodeJS.WriteStream, progressOn: NodeJS.WriteStream): Report {
  const colours = createColors(Boolean(out.isTTY) && !process.env.NO_COLOR);
  const targets: { readonly line: string; readonly reached: boolean }[] = [];
  let current = "";

  function say(line = ""): void {
    if (progressOn.isTTY) progressOn.write("\r\x1b[K");
    out.write(`${line}\n`);
  }

  function columns(rows: readonly (readonly string[])[]): string[] {
    const widths = (rows[0] ?? []).map((_, at) => Math.max(...rows.map((row) => row[at]?.length ?? 0)));
    return rows.map((row) =>
      row.map((cell, at) => (at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0))).join("   "),
    );
  }

  return {
    section(title, what) {
      current = title;
      say(`\n${colours.bold(title)}  ${colours.dim(what)}`);
    },
    progress(what, done) {
      if (!progressOn.isTTY) return;
      const filled = Math.round(Math.min(1, done) * 24);
      const bar = `${"█".repeat(filled)}${"░".repeat(24 - filled)}`;
      progressOn.write(`\r\x1b[K${`${current} ${bar} ${what}`.slice(0, (progressOn.columns ?? 80) - 1)}`);
    },
    picture(title, bars) {
      say(`\n  ${title}`);
      const most = Math.max(...bars.map(({ value }) => value));
      const width = Math.max(...bars.map(({ label }) => label.length));
      for (const { label, value, text, ours } of bars) {
        const bar = "█".repeat(Math.max(1, Math.round((value / most) * barWidth))).padEnd(barWidth);
        say(`  ${label.padEnd(width)}  ${ours ? colours.cyan(bar) : colours.dim(bar)}  ${text}`);
      }
    },
    table(head, rows) {
      const [first = "", ...others] = columns([head, ...rows]);
      say(`\n  ${colours.dim(first)}`);
      for (const line of others) say(`  ${line}`);
    },
    note(text) {
      say(colours.dim(`  ${text}`));
    },
    target(claim, measured, reached) {
      const verdict = reached ? colours.green("reached") : colours.yellow("not reached");
      const line = `  ${reached ? colours.green("✓") : colours.yellow("✗")} ${claim}: ${colours.bold(measured)}, ${verdict}`;
      targets.push({ line, reached });
      say(line);
    },
    summary() {
      if (targets.length === 0) return;
      const reached = targets.filter((target) => target.reached).length;
      say(`\n${colours.bold("Targets")}  ${colours.dim(`${reached} of ${targets.length} reached in this run`)}`);
      for (const { line } of targets) say(line);
    },
  };
}

export function thousands(value: number): string {
  return value < 10_000 ? value.toFixed(0) : `${(value / 1_000).toFixed(1)}k`;
}
