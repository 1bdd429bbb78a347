// Certificates for tests, made with openssl.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const CURVE = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];

/** Runs openssl in a directory that is gone afterwards; resolves its files to their texts. */
function issue(name, extra, given = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'holdfast-cert-'));
  try {
    for (const [file, text] of Object.entries(given)) writeFileSync(join(directory, file), text);
    const args = ['req', '-x509', ...CURVE, '-days', '2', '-subj', `/CN=${name}`, '-keyout', 'key.pem', '-out', 'cert.pem'];
    execFileSync('openssl', [...args, ...extra], { stdio: 'ignore', cwd: directory });
    const [key, cert] = ['key.pem', 'cert.pem'].map((file) => readFileSync(join(directory, file), 'utf8'));
    return { key, cert };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** A self-signed certificate and its key, PEM. */
export const selfSigned = (name) => issue(name, []);

/** A certificate authority: `{ cert, issue(name) }`. */
export function authority(name) {
  const own = issue(name, ['-addext', 'keyUsage=critical,keyCertSign']);
  const leaf = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-addext', 'basicConstraints=critical,CA:FALSE'];
  return {
    cert: own.cert,
    issue: (leafName) => issue(leafName, leaf, { 'ca.pem': own.cert, 'ca.key': own.key }),
  };
}
