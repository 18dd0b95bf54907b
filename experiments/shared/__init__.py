"""What experiments share: settings, runs over images and over sequences, figures."""
