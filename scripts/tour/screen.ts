import pc from "picocolors";

/** A line that the Worker logged, taken apart. */
type LogEntry = Record<string, unknown> & { event: string /** When it was seen. */; at: number };

export interface Screen {
  title(name: string, what: string): void;
  fact(name: string, value: string): void;
  section(title: string): void;
  /** Something happened: who did it, what it was, and to which message. */
  event(mark: keyof typeof marks, what: string, detail: string): void;
  /** A line of the Worker's log: told as an event where it is one of Sortie's or the sample's. */
  log(line: string): void;
  /** Answers when the Worker has logged a matching line. Throws after 20 seconds, or when the tour is stopped. */
  seen(matches: (entry: LogEntry) => boolean): Promise<LogEntry>;
  /** A cron invocation ended. */
  fired(outcome: string): void;
  /** The outcomes of all cron invocations that were not "ok". */
  readonly failures: readonly string[];
  check(claim: string, holds: boolean): void;
  invitation(url: URL, token: string): void;
  /** Settles when the tour is stopped. */
  readonly stopped: Promise<void>;
}

const marks = { in: pc.cyan("→"), ok: pc.green("✓"), later: pc.yellow("↻"), dead: pc.red("✗"), clock: pc.magenta("◷") };

export function createScreen(stop: AbortSignal): Screen {
  const started = Date.now();
  const entries: LogEntry[] = [];
  const failures: string[] = [];
  let wake = Promise.withResolvers<void>();
  const stopped = new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve(), { once: true }));
  const say = (line = "") => console.log(line);

  const event: Screen["event"] = (mark, what, detail) => {
    const seconds = ((Date.now() - started) / 1000).toFixed(2).padStart(6);
    say(`${pc.dim(`${seconds} s`)}  ${marks[mark]} ${pc.bold(what.padEnd(13))} ${detail}`);
  };

  return {
    title: (name, what) => say(`\n${pc.bold(name)}  ${what}\n`),
    fact: (name, value) => say(`  ${pc.dim(name.padEnd(13))} ${value}`),
    section: (title) => say(`\n${pc.bold(title)}`),
    event,
    log(line) {
      const entry = parse(line);
      if (!entry) {
        say(pc.dim(line.trimEnd()));
        return;
      }
      tell(entry, event);
      entries.push(entry);
      wake.resolve();
      wake = Promise.withResolvers<void>();
    },
    async seen(matches) {
      const late = AbortSignal.timeout(20_000);
      const timeout = new Promise<void>((resolve) => late.addEventListener("abort", () => resolve(), { once: true }));
      for (;;) {
        const entry = entries.find(matches);
        if (entry) return entry;
        if (late.aborted || stop.aborted)
          throw new Error("The Worker did not log what the tour waited for within 20 s.");
        await Promise.race([wake.promise, timeout, stopped]);
      }
    },
    stopped,
    failures,
    fired(outcome) {
      if (outcome === "ok") return;
      failures.push(outcome);
      event("dead", "cron", `the invocation ended with "${outcome}"`);
    },
    check: (claim, holds) => say(`  ${holds ? pc.green("✓") : pc.red("✗ not so:")} ${claim}`),
    invitation(url, token) {
      say(`\nIt stays up until Ctrl-C. Publish one yourself, and watch it above:\n`);
      say(
        `  curl ${url.href}publish/orders.placed \\\n    -H 'Authorization: Bearer ${token}' -H 'Content-Type: application/json' \\\n` +
          `    -d '{"orderId":"mine","card":"tok_busy","cents":1999,"remindAfterSeconds":5}'\n`,
      );
    },
  };
}

function parse(line: string): LogEntry | undefined {
  try {
    const entry: unknown = JSON.parse(line);
    return typeof entry === "object" && entry !== null && "event" in entry
      ? ({ ...entry, at: Date.now() } as LogEntry)
      : undefined;
  } catch {
    return undefined;
  }
}

function tell(entry: LogEntry, event: Screen["event"]) {
  const about = `${entry.subject} #${entry.sequence}${entry.attempt ? `, attempt ${entry.attempt}` : ""}`;
  switch (entry.event) {
    case "charged":
      return event(
        "ok",
        "handled",
        `charged ${(Number(entry.cents) / 100).toFixed(2)} for ${entry.orderId}, attempt ${entry.attempt}`,
      );
    case "resized":
      return event("ok", "handled", `resized ${entry.url} to ${entry.width}`);
    case "reminded":
      return event("ok", "handled", `reminded of ${entry.orderId}`);
    case "release":
      return; // what it has released is told by whoever handles it
    case "retried":
      return event("later", "retry later", `${about}: ${entry.error}; again in ${Number(entry.delayMs) / 1000} s`);
    case "dead-lettered":
      return event(
        "dead",
        "dead letter",
        `${about}: ${entry.reason}, ${entry.error} ${pc.dim(`→ ${entry.deadLetter}`)}`,
      );
    case "invocation":
      return;
    default:
      return event("dead", entry.event, JSON.stringify(entry));
  }
}
