/**
 * What the subjects begin with at which a login hears the server's answers: its own name under `_INBOX`, so that another
 * login that may only listen under its own cannot read them. A login without a name, or with one that is no token of a
 * subject, shares `_INBOX` with all such.
 */
export function inboxPrefixOf({ user, creds }: { user?: string | undefined; creds?: string | undefined }): string {
  const name = user || (creds === undefined ? undefined : nameIn(creds));
  return name !== undefined && /^[\w-]+$/.test(name) ? `_INBOX.${name}` : "_INBOX";
}

/** The user's name in the JWT of a `.creds` file; undefined where that cannot be read. */
function nameIn(creds: string): string | undefined {
  const [, claims = ""] = /^[\w-]+\.([\w-]+)\.[\w-]+$/m.exec(creds) ?? [];
  try {
    const { name } = JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/"))) as { name?: unknown };
    return typeof name === "string" ? name : undefined;
  } catch {
    return undefined;
  }
}
