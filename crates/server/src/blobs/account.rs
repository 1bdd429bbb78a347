//! Storage accounts, as their connection strings name them.

use holdfast_blob::signature::Account;

/// An account with its blob endpoint.
#[derive(Clone, Debug)]
pub(crate) struct StorageAccount {
    /// Name and key.
    pub(crate) account: Account,
    /// Scheme, host and perhaps the account's name as path, without a slash at its end.
    pub(crate) endpoint: String,
}

impl StorageAccount {
    /// Reads `DefaultEndpointsProtocol=…;AccountName=…;AccountKey=…;EndpointSuffix=…` or the same with a `BlobEndpoint`.
    ///
    /// # Errors
    /// What is wrong with it, without its key.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut protocol, mut suffix) = ("https", "core.windows.net");
        let (mut name, mut key, mut endpoint) = (None, None, None);
        for pair in text.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (field, value) = pair
                .split_once('=')
                .ok_or("a part of the connection string is not name=value")?;
            match field.to_ascii_lowercase().as_str() {
                "defaultendpointsprotocol" => protocol = value,
                "accountname" => name = Some(value),
                "accountkey" => key = Some(value),
                "endpointsuffix" => suffix = value,
                "blobendpoint" => endpoint = Some(value.trim_end_matches('/').to_owned()),
                // Queues and tables of the same account.
                _ => {}
            }
        }
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or("it has no AccountName")?;
        let key =
            key.ok_or("it has no AccountKey; a shared access signature is not enough to make others")?;
        let account = Account::new(name, key).ok_or("its AccountKey is not base64")?;
        let endpoint = endpoint.unwrap_or_else(|| format!("{protocol}://{name}.blob.{suffix}"));
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err("its blob endpoint must begin with https://".to_owned());
        }
        Ok(StorageAccount { account, endpoint })
    }

    /// Host with port, and the path behind it without slashes at its ends.
    pub(crate) fn host_and_path(&self) -> (&str, &str) {
        let rest = self.endpoint.split_once("://").map_or("", |(_, rest)| rest);
        rest.split_once('/').unwrap_or((rest, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_of_azure_and_azurite() {
        let azure = "DefaultEndpointsProtocol=https;AccountName=plant;AccountKey=c2VjcmV0==;EndpointSuffix=core.windows.net";
        // A key may hold =; this one has one too many.
        assert!(StorageAccount::parse(azure).is_err());
        let azure = StorageAccount::parse(&azure.replace("==", "")).unwrap();
        assert_eq!(azure.endpoint, "https://plant.blob.core.windows.net");
        assert_eq!(azure.host_and_path(), ("plant.blob.core.windows.net", ""));
        let azurite = "AccountName=devstoreaccount1;AccountKey=c2VjcmV0;BlobEndpoint=https://127.0.0.1:10000/devstoreaccount1/;";
        let azurite = StorageAccount::parse(azurite).unwrap();
        assert_eq!(azurite.host_and_path(), ("127.0.0.1:10000", "devstoreaccount1"));
        assert_eq!(azurite.account.name(), "devstoreaccount1");
    }

    #[test]
    fn bad_connection_strings_do_not_show_their_keys() {
        for text in [
            "",
            "AccountKey=U0VDUkVU",
            "AccountName=a",
            "AccountName=a;AccountKey=SECRET!",
            "AccountName=a;AccountKey=U0VDUkVU;BlobEndpoint=ftp://x",
            "U0VDUkVU",
        ] {
            let error = StorageAccount::parse(text).unwrap_err();
            assert!(
                !error.contains("U0VDUkVU") && !error.contains("SECRET"),
                "{error}"
            );
        }
    }
}
